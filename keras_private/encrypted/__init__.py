"""Training and prediction on secret-shared weights and data (ABY3, three parties)."""
