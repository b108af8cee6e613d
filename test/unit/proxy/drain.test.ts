import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {countActiveRequests, drainEnvoy} from '../../../src/proxy/drain.ts';
import {FakeClock} from '../../support/fake-clock.ts';

const settings = {terminationDrainMs: 5000, drainCeilingMs: 20_000, log: silentLogger};

function fakeAdmin() {
	const posts: string[] = [];
	const active = new Map([['http.inbound_0.0.0.0_8080;.downstream_rq_active', 1]]);
	return {
		posts,
		active,
		post: async (path: string) => {
			posts.push(path);
			return 'OK';
		},
		stats: async () => active,
	};
}

/** Starts a drain and tells when it is over. */
function begin(admin: Pick<ReturnType<typeof fakeAdmin>, 'post' | 'stats'>) {
	const clock = new FakeClock();
	const drain = {clock, isOver: false};
	void drainEnvoy({...settings, admin, clock}).then(() => {
		drain.isOver = true;
	});
	return drain;
}

test('drain › fails the health check first, then asks clients to close while listeners stay', async t => {
	const admin = fakeAdmin();
	const drain = begin(admin);
	await drain.clock.advance(0);
	t.deepEqual(admin.posts, ['/healthcheck/fail', '/drain_listeners?graceful&skip_exit']);
});

test('drain › waits its time even when nothing is in flight, so that callers learn of it', async t => {
	const admin = fakeAdmin();
	admin.active.clear();
	const drain = begin(admin);
	await drain.clock.advance(4900);
	t.false(drain.isOver);
	await drain.clock.advance(200);
	t.true(drain.isOver);
});

test('drain › waits for requests in flight', async t => {
	const admin = fakeAdmin();
	const drain = begin(admin);
	await drain.clock.advance(10_000);
	t.false(drain.isOver);
	admin.active.clear();
	await drain.clock.advance(200);
	t.true(drain.isOver);
});

test('drain › waits no longer than its ceiling', async t => {
	const drain = begin(fakeAdmin());
	await drain.clock.advance(19_800);
	t.false(drain.isOver);
	await drain.clock.advance(400);
	t.true(drain.isOver);
});

test('drain › is over at once when envoy does not answer', async t => {
	const drain = begin({...fakeAdmin(), post: () => Promise.reject(new Error('gone'))});
	await drain.clock.advance(0);
	t.true(drain.isOver);
});

test("drain › requests to envoy's own pages do not count", async t => {
	const stats = async () =>
		new Map([
			['http.admin.downstream_rq_active', 1],
			['http.stats.downstream_rq_active', 1],
			['http.agent.downstream_rq_active', 1],
			['http.inbound_10.0.0.1_80;.downstream_rq_active', 2],
			['http.outbound_0.0.0.0_80;.downstream_rq_active', 3],
		]);
	t.is(await countActiveRequests({stats}), 5);
});
