"""`python manage.py doctor`: a diagnosis for each error, commands that fix it, and no writing."""
