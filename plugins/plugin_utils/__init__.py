"""The code that the actions share. Only templating.py, action.py and apply.py need Ansible."""
