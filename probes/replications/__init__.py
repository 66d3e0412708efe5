"""Published claims, each with what is measured to test it and a rule that judges it."""
