"""What methods that train and retraining share."""
