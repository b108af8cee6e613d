import test from 'ava';
import {silentLogger} from '../../../src/log.ts';
import {type EntryEvidence, judgeEntry} from '../../../src/registration/entry-finding.ts';
import {startSelfCheck} from '../../../src/registration/index.ts';
import type {OwnEndpoint} from '../../../src/registration/own-endpoints.ts';
import {FakeClock} from '../../support/fake-clock.ts';

const service = 'outbound|80||shop.bar.svc.cluster.local';
const endpoint: OwnEndpoint = {
	service,
	port: 8080,
	isHealthy: true,
	tlsMode: 'istio',
	workload: 'checkout;bar;shop;;Kubernetes',
};
const good: EntryEvidence = {
	registeredForMs: 60_000,
	told: {isHealthy: true, reason: undefined, forMs: 60_000},
	endpoints: [endpoint],
	wasSeen: true,
	expected: {
		group: 'checkout',
		entryName: 'checkout-198.18.0.11',
		namespace: 'bar',
		clusterId: 'Kubernetes',
		canonicalName: 'shop',
	},
	takesUs: () => true,
};
const unhealthy = {isHealthy: false, reason: 'web: HTTP status 500', forMs: 60_000};

const judged = test.macro({
	title: (_, what: string) => `self-check › ${what}`,
	exec(t, _what: string, evidence: Partial<EntryEvidence>, summary: string, ...problems: RegExp[]) {
		const finding = judgeEntry({...good, ...evidence});
		t.is(finding.summary, summary);
		t.is(finding.problems.length, problems.length, finding.problems.map(({what}) => what).join());
		for (const [i, problem] of problems.entries()) t.regex(finding.problems[i]!.what, problem);
	},
});

test(judged, 'callers are sent here', {}, 'registered');
test(
	judged,
	'an older istiod, whose endpoints name the entry and not its group',
	{endpoints: [{...endpoint, workload: 'checkout-198.18.0.11;bar;shop;;Kubernetes'}]},
	'registered',
);
test(
	judged,
	'the entry of another machine of our group, as an older istiod names it',
	{endpoints: [{...endpoint, workload: 'checkout-198.18.0.12;bar;shop;;Kubernetes'}]},
	'registered',
	/also that of workload bar\/checkout-198\.18\.0\.12/,
);
test(judged, 'an entry without health is judged alike', {told: undefined}, 'registered');
test(
	judged,
	'just registered, nothing is known yet',
	{registeredForMs: 4999, endpoints: [], wasSeen: false},
	'registered',
);
test(judged, 'just healthy, nothing is known yet', {told: {...good.told!, forMs: 4999}, endpoints: []}, 'registered');
test(judged, 'no service selects it', {endpoints: [], wasSeen: false}, 'registered, not selected by any service');
test(
	judged,
	'it has been taken out',
	{endpoints: []},
	'registered, not selected by any service',
	/^our address has gone from the endpoints/,
);
test(judged, 'unhealthy, and left out', {told: unhealthy, endpoints: []}, 'unhealthy: web: HTTP status 500');
test(
	judged,
	'unhealthy, and marked so',
	{told: unhealthy, endpoints: [{...endpoint, isHealthy: false}]},
	'unhealthy: web: HTTP status 500',
);
test(judged, 'unhealthy since a moment', {told: {...unhealthy, forMs: 4999}}, 'unhealthy: web: HTTP status 500');
test(
	judged,
	'unhealthy, and nobody hears',
	{told: unhealthy},
	'unhealthy: web: HTTP status 500',
	/^callers are still sent here although we report/,
);
test(judged, 'plaintext', {endpoints: [{...endpoint, tlsMode: ''}]}, 'registered', /^callers speak plaintext/);
test(
	judged,
	'another service account than the entry',
	{takesUs: () => false},
	'registered',
	/^callers of shop\.bar\.svc\.cluster\.local do not take our certificate/,
);
test(judged, 'callers whose configuration names nobody', {takesUs: () => undefined}, 'registered');
test(
	judged,
	'labels of before',
	{endpoints: [{...endpoint, workload: 'checkout;bar;old-shop;;Kubernetes'}]},
	'registered',
	/^the entry has the canonical name "old-shop", and our labels say "shop"/,
);
for (const [what, workload] of [
	['group', 'other;bar;shop;;Kubernetes'],
	['namespace', 'checkout;foo;shop;;Kubernetes'],
	['cluster', 'checkout;bar;shop;;west'],
] as const)
	test(
		judged,
		`another machine of another ${what} has our address`,
		{endpoints: [endpoint, {...endpoint, workload}]},
		'registered',
		/^our address is also that of workload /,
	);

test('self-check › a mesh that sends no workload names is no contradiction', t => {
	t.deepEqual(judgeEntry({...good, endpoints: [{...endpoint, workload: ''}]}).problems, []);
	t.is(judgeEntry(good).proof, 'callers are sent here: shop.bar.svc.cluster.local');
});

function setUp() {
	const clock = new FakeClock();
	let evidence: Omit<EntryEvidence, 'wasSeen'> | undefined = good;
	const calls: string[] = [];
	const check = startSelfCheck({
		evidence: () => evidence,
		reconnect: () => calls.push('reconnect'),
		onFinding: () => calls.push(check.finding()?.summary ?? 'none'),
		clock,
		random: () => 0.5,
		log: silentLogger,
	});
	const become = (now: Partial<EntryEvidence> | undefined) => {
		evidence = now && {...good, ...now};
		check.look();
	};
	return {clock, check, become, calls};
}

test('self-check › an entry that is lost is asked for again, a little later, and at most three times', async t => {
	const {clock, check, become, calls} = setUp();
	become({});
	become({endpoints: []});
	t.deepEqual(calls, ['registered', 'registered, not selected by any service']);
	await clock.advance(2499);
	t.is(calls.length, 2);
	await clock.advance(1);
	t.deepEqual(calls.slice(2), ['reconnect']);
	// Between two streams nothing is judged.
	become(undefined);
	become({endpoints: [], registeredForMs: 0});
	become({endpoints: []});
	await clock.advance(3_600_000);
	t.is(calls.filter(call => call === 'reconnect').length, 3);
	become({});
	t.is(check.attempts, 0);
	await check.stop();
});

test('self-check › it is over when the next stream brings it back', async t => {
	const {clock, become, calls, check} = setUp();
	become({});
	become({endpoints: []});
	await clock.advance(2500);
	become({});
	await clock.advance(3_600_000);
	t.is(calls.filter(call => call === 'reconnect').length, 1);
	await check.stop();
});

test('self-check › away, nothing is mended; what was seen of another address is forgotten', async t => {
	const {clock, become, calls, check} = setUp();
	become({});
	become({endpoints: []});
	become(undefined);
	await clock.advance(3_600_000);
	t.deepEqual(calls, ['registered', 'registered, not selected by any service', 'none']);
	become({});
	become({endpoints: []});
	check.forget();
	become({endpoints: []});
	await clock.advance(3_600_000);
	t.false(calls.includes('reconnect'));
	await check.stop();
});

test('self-check › what a stream cannot mend is only told', async t => {
	const {clock, become, calls, check} = setUp();
	become({endpoints: [{...endpoint, tlsMode: ''}]});
	await clock.advance(3_600_000);
	t.deepEqual(calls, ['registered']);
	await check.stop();
});

test('self-check › what has not been seen yet is judged once it should have been', async t => {
	const {clock, calls, check} = setUp();
	const since = clock.monotonicMs();
	const evidence = () => ({...good, endpoints: [], registeredForMs: clock.monotonicMs() - since, told: undefined});
	const seen: string[] = [];
	const own = startSelfCheck({
		evidence,
		reconnect: () => seen.push('reconnect'),
		onFinding: () => seen.push(own.finding()!.summary),
		clock,
		random: () => 0.5,
		log: silentLogger,
	});
	own.look();
	await clock.advance(5000);
	t.deepEqual(seen, ['registered', 'registered, not selected by any service']);
	t.deepEqual(calls, []);
	await own.stop();
	await check.stop();
});
