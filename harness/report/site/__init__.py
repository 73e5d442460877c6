"""The leaderboard as a folder of pages that needs nothing but a browser: no server, no network."""
