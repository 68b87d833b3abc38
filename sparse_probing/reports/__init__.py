"""Tables and pages for people. Reads only from the warehouse."""
