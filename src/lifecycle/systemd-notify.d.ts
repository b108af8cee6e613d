/** The npm module has no types of its own: READY, STATUS and the sender's pid, through the program of the same name. */
declare module 'systemd-notify' {
	export default function notify(options: {ready?: boolean; status?: string; pid?: number}): Promise<unknown>;
}
