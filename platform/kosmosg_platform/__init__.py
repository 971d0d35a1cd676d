"""The machinery every job and endpoint needs: configuration, Ray, DeepSpeed, MLflow and storage."""
