"""Pages without scripts or network: reports and charts."""
