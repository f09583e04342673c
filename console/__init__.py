"""The operator's screens at /console: rendered here, without a script, and changed through crud as by the API."""
