"""What a classifier's decisions rest on: maps, Difference Salience, panels."""
