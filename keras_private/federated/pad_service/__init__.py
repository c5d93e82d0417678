"""The two pad parties as processes of their own, and how a coordinator asks them."""
