"""What a score of contributions sees: runs of training kept as inner products, and scores and ratings made of them."""
