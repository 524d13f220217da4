"""Three real services, and the program that shows one intent going through them: ``quantum-bus demo``."""
