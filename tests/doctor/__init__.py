"""`python manage.py doctor`: each error has its own diagnosis, the commands that it prints fix it, and it never writes."""
