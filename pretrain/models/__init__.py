"""Networks: ResNet encoders, projection and prediction heads, and batch normalization over processes or groups."""
