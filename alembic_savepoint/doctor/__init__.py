"""What is wrong between files, database and models, and what to run next."""
