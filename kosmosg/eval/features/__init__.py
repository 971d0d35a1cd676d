"""Feature networks and the preprocessing that published numbers were made with."""
