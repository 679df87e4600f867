"""Does it help? Every arm trained on every task, a JSON line for each run, and a page of them."""
