"""`python manage.py check`: what a schema, its revisions and the models say, against each other and without a trace."""
