"""Attacks: backdoors put into models on purpose, so that removals can be checked."""
