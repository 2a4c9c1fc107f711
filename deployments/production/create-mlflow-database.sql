-- Run once by the PostgreSQL image, which creates Prefect's database itself (POSTGRES_DB).
CREATE DATABASE mlflow;
