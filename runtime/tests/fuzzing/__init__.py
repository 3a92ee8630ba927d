"""Random programs of what real ones are made of, run by every back end and by numpy."""
