-- Run once by the PostgreSQL image; Prefect's database is the image's own POSTGRES_DB.
CREATE DATABASE mlflow;
