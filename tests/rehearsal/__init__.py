"""`python manage.py rehearse`: a migration run for real, watched, and rolled back."""
