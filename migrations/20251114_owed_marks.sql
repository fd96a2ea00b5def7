-- Marks the ended sessions that hold their credits already: those of an adopted base, and those of earlier versions.
update generation_sessions s set holds = true
from credit_reservations r
where r.id = s.reservation_id and r.user_id = s.user_id and r.status = 'held' and s.status in ('failed', 'completed')
  and s.holds is not true;
