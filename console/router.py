"""The console as one router, for main.py."""

from fastapi import APIRouter

from console import acting, pages, signing_in

router = APIRouter()
for each in (signing_in.router, signing_in.signed_in, pages.router, acting.router):
    router.include_router(each)
