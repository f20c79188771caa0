"""What people read of a comparison: the HTML page, its plots, the table."""
