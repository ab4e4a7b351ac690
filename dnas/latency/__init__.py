"""How long nets take where they will run: a table by measuring, and single nets measured against it."""
