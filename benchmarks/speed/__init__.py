"""How fast is the model, beside peers that pip installs and beside what the machine could do?"""
