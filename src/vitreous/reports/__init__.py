"""Evidence → leaderboard, figures, one offline report, trackers. No number is computed twice or rounded before it."""
