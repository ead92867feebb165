"""Generate once, score many times: attack success, refusals, utility, statistics and verdicts."""
