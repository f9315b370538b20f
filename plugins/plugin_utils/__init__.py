"""What the actions share: variables, validation and rendering. Plain Python but for templating.py and apply.py."""
