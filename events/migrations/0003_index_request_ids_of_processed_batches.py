from django.db import migrations, models
from django.db.models import Q


class Migration(migrations.Migration):
    dependencies = [("events", "0002_index_attempts_of_open_batches")]

    operations = [
        migrations.AddIndex(
            model_name="batch",
            index=models.Index(
                fields=["request_id"],
                condition=Q(processed_at__isnull=False),
                opclasses=["varchar_pattern_ops"],
                name="batch_request_id",
            ),
        ),
    ]
