"""The network that refines: what it sees, how it is built, trained, kept and used."""
