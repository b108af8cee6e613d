import test from 'ava';
import {Readiness} from '../../../src/lifecycle/index.ts';
import {silentLogger} from '../../../src/log.ts';
import {
	type EntryFinding,
	type RegistrationState,
	startRegistration,
	workloadEntryName,
} from '../../../src/registration/index.ts';
import {nextState} from '../../../src/registration/registration.ts';
import type {UpstreamStatus} from '../../../src/relay/index.ts';
import {FakeClock} from '../../support/fake-clock.ts';
import {workload} from '../control-plane/world.ts';

type Failure = NonNullable<UpstreamStatus['lastError']>;

const failure = (code: string): Failure => ({code, message: `why ${code}`, hint: `mend ${code}`, at: new Date(0)});
const away = failure('control_plane.unreachable');
const refusal = failure('control_plane.permission_denied');
const missing = failure('control_plane.group_missing');

function upstreamStatus(state: UpstreamStatus['state'], lastError?: Failure): UpstreamStatus {
	const since = new Date(0);
	return {state, lastError, endpoint: undefined, protocol: 'delta', since, attempts: 0, nextAttemptAt: undefined};
}

function setUp({group, savedAt}: {group?: string; savedAt?: Date} = {group: 'checkout'}) {
	const clock = new FakeClock();
	const readiness = new Readiness(['registration']);
	let upstream = upstreamStatus('connecting');
	let listener = () => {};
	const calls: string[] = [];
	let withheld: string | undefined;
	let address = '10.0.0.5';
	let finding: EntryFinding | undefined;
	const registration = startRegistration({
		workload: {...workload, group, addresses: ['10.0.0.5', 'fd00::5']},
		address: () => address,
		upstream: () => upstream,
		savedAt: () => savedAt,
		onUpstreamChange: each => {
			listener = each;
			return () => {
				listener = () => {};
			};
		},
		withheld: () => withheld,
		finding: () => finding,
		withdraw: () => calls.push('withdraw'),
		gate: readiness.gate('registration'),
		clock,
		log: silentLogger,
	});
	const become = (state: UpstreamStatus['state'], lastError?: Failure) => {
		upstream = upstreamStatus(state, lastError);
		listener();
		return registration.status().state;
	};
	const say = (what: {withheld?: string; finding?: EntryFinding}) => {
		({withheld, finding} = {withheld: undefined, finding: undefined, ...what});
		registration.look();
	};
	const move = (to: string) => {
		address = to;
		registration.look();
	};
	return {registration, become, say, move, calls, clock, gate: () => readiness.states()[0]!};
}

const follows = test.macro({
	title: (
		_,
		before: RegistrationState,
		state: UpstreamStatus['state'],
		error: Failure | undefined,
		after: RegistrationState,
	) => `registration › ${before}, and the stream is ${state}${error ? ` after ${error.code}` : ''}: ${after}`,
	exec(
		t,
		before: RegistrationState,
		state: UpstreamStatus['state'],
		error: Failure | undefined,
		after: RegistrationState,
	) {
		t.is(nextState(before, upstreamStatus(state, error)), after);
	},
});

test(follows, 'connecting', 'idle', undefined, 'connecting');
test(follows, 'connecting', 'subscribing', undefined, 'connecting');
test(follows, 'connecting', 'waiting', away, 'connecting');
test(follows, 'connecting', 'waiting', refusal, 'refused');
test(follows, 'connecting', 'connected', undefined, 'registered');
test(follows, 'registered', 'waiting', away, 'away');
test(follows, 'registered', 'waiting', refusal, 'refused');
test(follows, 'registered', 'idle', undefined, 'withdrawn');
test(follows, 'away', 'subscribing', away, 'away');
test(follows, 'away', 'idle', away, 'away');
test(follows, 'away', 'connected', undefined, 'registered');
test(follows, 'withdrawn', 'connecting', undefined, 'withdrawn');
test(follows, 'withdrawn', 'waiting', away, 'withdrawn');
test(follows, 'withdrawn', 'connected', undefined, 'registered');
test(follows, 'refused', 'connecting', refusal, 'refused');
test(follows, 'refused', 'waiting', away, 'connecting');
test(follows, 'refused', 'connected', undefined, 'registered');
test(follows, 'registered', 'waiting', missing, 'waiting for group');
test(follows, 'waiting for group', 'waiting', away, 'connecting');
for (const code of ['permission_denied', 'node_refused', 'unauthenticated'])
	test(follows, 'away', 'waiting', failure(`control_plane.${code}`), 'refused');

test('registration › while the control plane is away the gate stays open and says since when nothing is known', async t => {
	const {registration, become, gate, clock} = setUp();
	t.is(become('connected'), 'registered');
	t.is(gate().reason, 'bar/checkout-10.0.0.5 at 10.0.0.5: registered');
	t.is(registration.status().confirmedUntil, undefined);
	await clock.advance(60_000);
	t.is(become('waiting', away), 'away');
	const at = new Date('2030-01-01T00:01:00Z');
	t.deepEqual(registration.status().confirmedUntil, at);
	t.true(gate().isOpen);
	t.regex(gate().reason, /^bar\/checkout-10\.0\.0\.5, not confirmed since 2030-01-01T00:01:00\.000Z: /);
	t.is(registration.status().reason, away.message);
	await clock.advance(60_000);
	become('connecting', away);
	t.deepEqual(registration.status().confirmedUntil, at, 'a further attempt confirms nothing');
	become('connected');
	t.is(registration.status().confirmedUntil, undefined);
});

test('registration › a stream that we have ended for want of Envoy closes the gate until the next one is taken', t => {
	const {registration, become, gate} = setUp();
	become('connected');
	t.is(become('idle'), 'withdrawn');
	t.false(gate().isOpen);
	t.regex(gate().reason, /^this agent has ended its stream/);
	t.regex(gate().hint!, /gate proxy/);
	t.like(registration.status(), {state: 'withdrawn', reason: gate().reason, hint: gate().hint});
	// Nothing of this agent's has been registered since, whatever the reason.
	t.is(become('waiting', away), 'withdrawn');
	t.deepEqual([gate().isOpen, gate().reason], [false, away.message]);
	become('connected');
	t.true(gate().isOpen);
});

test('registration › a refusal closes the gate with its reason and remedy', t => {
	const {registration, become, gate} = setUp();
	become('waiting', refusal);
	t.like(gate(), {isOpen: false, reason: refusal.message, hint: refusal.hint});
	const {message: reason, hint} = refusal;
	t.like(registration.status(), {state: 'refused', summary: `refused: ${reason}`, reason, hint});
});

test('registration › a stop withdraws, says so, and listens no more', async t => {
	const {registration, become, calls} = setUp();
	become('connected');
	await registration.stop();
	t.deepEqual(calls, ['withdraw']);
	t.is(registration.status().state, 'withdrawn');
	t.is(become('waiting', away), 'withdrawn');
});

test('registration › without a group there is nothing to wait for', async t => {
	const {registration, become, gate} = setUp({});
	t.true(gate().isOpen);
	t.is(become('waiting', away), 'off');
	t.like(registration.status(), {entry: undefined, reason: undefined});
	await registration.stop();
	t.is(registration.status().state, 'off');
});

for (const [group, address, network, name] of [
	['vm', '10.0.0.5', undefined, 'vm-10.0.0.5'],
	['vm', 'fd00::5', 'net-1', 'vm-fd00--5-net-1'],
	['vm', '10.0.0.5', '', 'vm-10.0.0.5'],
	['g'.repeat(250), '10.0.0.5', undefined, `${'g'.repeat(244)}-10.0.0.5`],
] as const) {
	test(`registration › the entry of ${group.slice(0, 10)} at ${address} in ${network ?? 'no network'} is named as istiod names it`, t => {
		t.is(workloadEntryName(group, address, network), name);
	});
}

test('registration › in maintenance the stream goes on, registers nothing, and the agent is no less ready for it', t => {
	const {registration, become, say, gate} = setUp();
	become('connected');
	say({withheld: 'maintenance: new disk'});
	t.like(registration.status(), {state: 'withdrawn', reason: 'maintenance: new disk', hint: 'onramp ready'});
	t.like(gate(), {isOpen: true, reason: 'not registered: maintenance: new disk'});
	become('connected');
	t.is(registration.status().state, 'withdrawn');
	say({});
	t.is(registration.status().state, 'registered');
});

test('registration › what is seen of the entry is told, and the agent is no less ready for it', t => {
	const {registration, become, say, gate} = setUp();
	become('connected');
	t.is(registration.status().summary, 'registered');
	const problem = {what: 'callers speak plaintext to this VM', hint: 'set serviceAccount', isMendable: false};
	say({
		finding: {
			summary: 'unhealthy: web: HTTP status 500',
			proof: 'callers are not sent here',
			problems: [problem],
			isSettled: true,
		},
	});
	t.like(registration.status(), {
		state: 'registered',
		summary: 'unhealthy: web: HTTP status 500',
		proof: 'callers are not sent here',
		problems: [{what: problem.what, hint: problem.hint}],
	});
	t.like(gate(), {isOpen: true, reason: 'bar/checkout-10.0.0.5 at 10.0.0.5: unhealthy: web: HTTP status 500'});
	become('waiting', away);
	t.like(registration.status(), {state: 'away', summary: 'away', proof: undefined, problems: []});
});

test('registration › a group that is not there is waited for', t => {
	const {registration, become, gate} = setUp();
	t.is(become('waiting', missing), 'waiting for group');
	t.is(registration.status().summary, 'waiting for group');
	t.like(gate(), {isOpen: false, reason: missing.message, hint: missing.hint});
	t.is(become('connecting', missing), 'waiting for group');
	t.is(become('connected'), 'registered');
});

test('registration › another address is another entry', t => {
	const {registration, become, move, gate} = setUp();
	become('connected');
	move('10.0.0.9');
	t.like(registration.status(), {entry: 'bar/checkout-10.0.0.9', address: '10.0.0.9'});
	t.is(gate().reason, 'bar/checkout-10.0.0.9 at 10.0.0.9: registered');
});
