"""`python manage.py save`, `load` and `saves`: consistent copies, loaded whole or not at all."""
