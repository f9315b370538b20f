"""The code that the actions share. Only templating.py, apply.py and arguments.py need Ansible."""
