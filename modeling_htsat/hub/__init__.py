"""Models on their way to the Hub: the card that describes one, and its publication."""
