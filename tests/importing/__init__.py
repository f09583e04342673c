"""`python manage.py import`: all that is valid, all or nothing where wanted, and nobody twice."""
