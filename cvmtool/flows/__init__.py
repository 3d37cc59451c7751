"""The only place where owner and host meet. Each function reads as the how-to."""
