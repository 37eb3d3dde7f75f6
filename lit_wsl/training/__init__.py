"""Lightning modules, data modules, built-in tasks."""
