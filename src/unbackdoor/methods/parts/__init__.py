"""What methods are made of: their base, simulate and eliminate, rounds, results, controls."""
