"""What tests share: helpers, no tests and no fixtures."""
