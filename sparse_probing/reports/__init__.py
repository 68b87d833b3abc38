"""Results as people read them: terminal tables, CSV and JSON, and the HTML report. Reads the warehouse alone."""
