"""A database with as many rows as a busy year leaves: made in SQL, in seconds. PostgreSQL only."""

from sqlalchemy import Engine, text

from service.store.tables import metadata

JOBS, TENANTS = 10_000, 20
EVENTS, POINTS, STEPS, LINES = 12, 12, 4, 6  # of a job
# one in so many of the numbered jobs is its tenant's, of its status, and named like each other
STATUS = """(CASE WHEN n % 50 = 0 THEN 'queued' WHEN n % 97 = 0 THEN 'running' WHEN n % 61 = 0 THEN 'paused'
    WHEN n % 7 = 0 THEN 'failed' WHEN n % 11 = 0 THEN 'cancelled' ELSE 'succeeded' END)"""
ROWS = f"""
INSERT INTO tenants (name, most_queued, most_running, most_stored_bytes, most_gpu_hours, created_at)
SELECT 'tenant-' || n, 1000000, CASE WHEN n = 3 THEN 0 END, 1e15, 1e9, now() FROM generate_series(0, {TENANTS - 1}) n;

INSERT INTO keys (id, tenant, name, prefix, sha256, scopes, created_at)
SELECT 'key_' || lpad(n::text, 26, '0'), 'tenant-' || n % {TENANTS}, '', left(md5(n::text), 8), repeat('0', 64), '[]', now()
FROM generate_series(1, 5000) n;

INSERT INTO usage (tenant, month, gpu_seconds)
SELECT 'tenant-' || t, '20' || y || '-' || lpad(m::text, 2, '0'), 5
FROM generate_series(0, {TENANTS - 1}) t, generate_series(20, 39) y, generate_series(1, 12) m;

INSERT INTO jobs (id, tenant, kind, name, status, spec, resolved_spec, metadata, attempt, failures, losses, priority, gpus,
    demand, slots, blocked_at, created_at, queued_at, turn_at, not_before, started_at, ended_at, claimed_at, lease_expires_at, worker, last_event,
    last_log_line, idempotency_key, body_sha256)
SELECT 'job_' || lpad(n::text, 26, '0'), 'tenant-' || n % {TENANTS}, CASE WHEN n % 40 = 0 THEN 'evaluate' ELSE 'train' END,
    'name ' || n % 500, {STATUS}, '{{}}', jsonb_build_object('resources', jsonb_build_object('gpus', n % 2),
    'backbone', jsonb_build_object('name', 'resnet26', 'weights', CASE WHEN n % 100 = 0 THEN 'wts_' || n END),
    'dataset', CASE WHEN n % 100 = 50 THEN jsonb_build_object('name', 'image_folder', 'id', 'ds_' || n)
    ELSE jsonb_build_object('name', 'digits') END), '{{}}', 1, 0, 0, 0, CASE WHEN n % 3 = 0 THEN 1 END,
    'demand ' || n % 7, 1 + n % 2, CASE WHEN n % 50 = 0 THEN at END, at, at, at, CASE WHEN n % 150 = 0 THEN now() + interval '1 hour' END, at,
    CASE WHEN {STATUS} IN ('succeeded', 'failed', 'cancelled') THEN at END, at,
    CASE WHEN {STATUS} = 'running' THEN now() + interval '1 minute' END, 'wk_' || n % 50, {EVENTS}, {LINES},
    CASE WHEN n % 4 = 0 THEN 'key ' || n END, repeat('0', 64)
FROM (SELECT n, now() - make_interval(mins => 50 * ({JOBS} - n)) AS at FROM generate_series(1, {JOBS}) n) numbered;

INSERT INTO labels (job, key, value)
SELECT id, 'study', 'study ' || row_number() OVER () % 400 FROM jobs UNION ALL SELECT id, 'owner', 'somebody' FROM jobs;

INSERT INTO events (job, number, at, attempt, type, message, data)
SELECT id, number, created_at, 1, (ARRAY['status', 'progress', 'metrics', 'trace', 'checkpoint', 'evaluation'])[1 + number % 6],
    'said', '{{}}' FROM jobs, generate_series(1, {EVENTS}) number;

INSERT INTO metric_points (job, name, step, value)
SELECT id, curve, step, step FROM jobs, unnest(ARRAY['train/loss', 'val/loss']) curve, generate_series(1, {POINTS // 2}) step;

INSERT INTO metric_blocks (job, name, block, points, least, least_step, greatest, greatest_step)
SELECT job, name, step / 128, count(*), min(value), min(step), max(value), max(step) FROM metric_points GROUP BY 1, 2, 3;

INSERT INTO trace_steps (job, step, data) SELECT id, step, '{{"layers": []}}' FROM jobs, generate_series(1, {STEPS}) step;

INSERT INTO evaluations (job, step, split, final, best, data)
SELECT id, step, 'val', false, step = 2, '{{}}' FROM jobs, generate_series(1, 2) step;

INSERT INTO attempts (job, number, worker, started_at, ended_at, heartbeat_at)
SELECT id, 1, worker, created_at, ended_at, created_at FROM jobs;

INSERT INTO checkpoints (id, job, attempt, epoch, step, kind, metrics, size_bytes, stored_bytes, sha256, key, best, latest, tenant, created_at)
SELECT 'ckpt_' || substr(id, 5) || step, id, 1, step, step, 'epoch', '{{}}', 5, 5, repeat('0', 64), id || '/' || step, step = 1,
    step = 2, tenant, created_at FROM jobs, generate_series(1, 2) step;

INSERT INTO log_lines (job, number, line) SELECT id, number, 'line' FROM jobs, generate_series(1, {LINES}) number;

INSERT INTO workers (id, host, slots, busy, cores, devices, versions, catalog, started_at, seen_at, left_at)
SELECT 'wk_' || n, 'host', 1, 0, 8, '[]', '{{}}', '{{}}', at, at, CASE WHEN n > 5 THEN at END
FROM (SELECT n, now() - make_interval(hours => 3 * n) AS at FROM generate_series(1, 3000) n) numbered;

INSERT INTO demands (id, demand, created_at)
SELECT 'demand ' || n, '{{}}', now() - interval '1 year' FROM generate_series(0, 500) n;

INSERT INTO abilities (worker, demand, able)
SELECT 'wk_' || w, 'demand ' || d, w > 2 AND w % 2 = 0 FROM generate_series(1, 1000) w, generate_series(0, 6) d;

INSERT INTO holdings (worker, slot, job, attempt, tenant, on_gpu, since)
SELECT worker, row_number() OVER (PARTITION BY worker ORDER BY id), id, attempt, tenant, true, claimed_at
FROM jobs WHERE status = 'running';

INSERT INTO reservations (worker, job, reserved_at, expected_at)
SELECT 'wk_' || row_number() OVER (ORDER BY id), id, now(), now() FROM jobs WHERE status = 'queued' ORDER BY id LIMIT 3;

INSERT INTO weights (id, tenant, name, sha256, size_bytes, tensors, params, key, created_at)
SELECT 'wts_' || lpad(n::text, 26, '0'), 'tenant-' || n % {TENANTS}, '', repeat('0', 64), 5, 1, 1, 'weights/' || n, now()
FROM generate_series(1, 5000) n;

INSERT INTO datasets (id, tenant, name, task, format, options, status, received_bytes, upload_number, claims, failures, losses,
    lease_expires_at, created_at, deleted_at)
SELECT 'ds_' || lpad(n::text, 26, '0'), 'tenant-' || n % {TENANTS}, 'name ' || n % 100, 'classification', 'image_folder', '{{}}',
    CASE WHEN n % 200 = 0 THEN 'checking' WHEN n % 10 = 0 THEN 'rejected' WHEN n % 30 = 1 THEN 'uploading' ELSE 'ready' END,
    5, 1, 0, 0, 0, CASE WHEN n % 400 = 0 THEN now() + interval '1 hour' END, now(),
    CASE WHEN n % 999 = 0 THEN now() - interval '1 hour' END
FROM generate_series(1, 5000) n;

INSERT INTO dataset_parts (dataset, start, size_bytes, upload, key)
SELECT id, start, 5, 1, id || '/' || start FROM datasets, generate_series(0, 3) start WHERE status != 'rejected';

INSERT INTO plans (id, request, requested_at, claims, failures, answered_at, library, answer)
SELECT md5(n::text), '{{}}', at, 1, 0, CASE WHEN n % 500 > 0 THEN at END, repeat('a', 64), '{{}}'
FROM (SELECT n, now() - make_interval(secs => 30 * n) AS at FROM generate_series(1, 2000) n) numbered;

INSERT INTO predictions (id, request, requested_at, claims, failures, answered_at, library, answer)
SELECT md5(n::text), '{{}}', at, 1, 0, CASE WHEN n % 500 > 0 THEN at END, repeat('a', 64), '{{}}'
FROM (SELECT n, now() - make_interval(secs => n) AS at FROM generate_series(1, 2000) n) numbered;

INSERT INTO webhooks (id, tenant, name, url, types, secret, created_at)
SELECT 'whk_' || lpad(n::text, 26, '0'), 'tenant-' || n % {TENANTS}, '', 'https://example.com', '["job.succeeded"]', 'whsec_', now()
FROM generate_series(1, 400) n;

INSERT INTO deliveries (id, webhook, job, type, body, status, attempts, claims, not_before, lease_expires_at, created_at, ended_at)
SELECT 'dlv_' || lpad(n::text, 26, '0'), 'whk_' || lpad((1 + n % 400)::text, 26, '0'), NULL, 'job.succeeded', '{{}}',
    CASE WHEN n % 500 = 0 THEN 'pending' WHEN n % 100 = 1 THEN 'dead' ELSE 'delivered' END, 1, 1, at,
    CASE WHEN n % 5000 = 0 THEN now() + interval '1 minute' END, at, CASE WHEN n % 500 > 0 THEN at END
FROM (SELECT n, now() - make_interval(secs => 15 * n) AS at FROM generate_series(1, 30000) n) numbered;
"""


def fill(engine: Engine) -> None:
    """Insert them all, and have the planner look at what there is."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET session_replication_role = replica"))  # no row is looked up for another's sake
        for table in metadata.tables:  # while PostgreSQL analyses one by itself, a VACUUM leaves new rows unseen
            connection.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = off)"))
        for statement in ROWS.split(";\n"):
            if statement.strip():
                connection.exec_driver_sql(statement.replace("%", "%%"))
        connection.execute(text("VACUUM ANALYZE"))
