"""Programs and profiles to start from; the guides in `docs/` say what each is for. The library imports nothing from here."""
