"""``python -m quantum_bus``: the same as ``quantum-bus``."""

from quantum_bus.cli import main

if __name__ == "__main__":
    main()
