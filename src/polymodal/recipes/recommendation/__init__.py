"""What a person may like next, from what was chosen before and what is known of the items."""
