"""`python manage.py doctor`: what is wrong is told apart, the commands that it prints mend it, and it never writes."""
