"""bpr-etl: every night, a trip planner's PostgreSQL becomes training data for Bayesian Personalized Ranking."""

__version__ = "0.1.0"
